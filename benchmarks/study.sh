#!/usr/bin/env bash
# All results in docs/study.md: about fifteen hours on two CPU cores. The same command continues a part. The results in
# benchmarks/results count as done, except for icons. To repeat them, use a checkout without these files.
#
#   bash benchmarks/study.sh WORK [shapes] [digits] [ablation] [icons]      all parts by default
#
# WORK is a new folder, or one of an earlier call. icons needs a network connection (npm). To update the page:
#   python benchmarks/study_page.py shapes=WORK/shapes digits=WORK/digits icons=WORK/icons
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?name a folder for the results}
shift
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 # one core per run
mkdir -p "$work" && cd "$work"

# taken NAME: begin the study with its results in benchmarks/results.
taken() {
    if [ ! -e "$1" ] && [ -d "$here/results/study-$1" ]; then
        rm -rf "$1.part" && cp -r "$here/results/study-$1" "$1.part" && mv "$1.part" "$1"
    fi
}

shapes() {
    taken shapes
    "$python" -m prologue reproduce --scale hours --seed 20 --seeds 3 --out shapes --jobs 2
    # Six more seeds of the two variants that the first claim is about.
    "$python" -m prologue reproduce --scale hours --seed 23 --seeds 6 --variants 2d prologue --out shapes --jobs 2
}

digits() {
    taken digits
    "$python" -m prologue reproduce --scale hours --data digits --seed 20 --seeds 3 --variants 2d 1d prologue \
        --out digits --jobs 2
}

ablation() {
    if [ ! -e ablation/ablation.json ] && [ -e "$here/results/ablation.json" ]; then
        mkdir -p ablation && cp "$here/results/ablation.json" ablation/
    fi
    "$python" "$here/ablation.py" --out ablation --seeds 2 --jobs 2
}

icons() {
    if [ ! -d emoji ]; then
        npm pack emoji-datasource-twitter@16.0.0
        rm -rf package && tar xzf emoji-datasource-twitter-16.0.0.tgz package/emoji.json package/img/twitter/64
        rm -rf emoji.part && "$python" "$here/lay_out.py" package emoji.part && mv emoji.part emoji
    fi
    OMP_NUM_THREADS=2 "$python" "$here/first_try.py" emoji --out icons
}

for part in "${@:-shapes digits ablation icons}"; do
    for each in $part; do "$each"; done
done
