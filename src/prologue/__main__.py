"""`python -m prologue`, for launchers that start modules (`accelerate launch -m prologue`, `torchrun -m prologue`)."""

from prologue.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
