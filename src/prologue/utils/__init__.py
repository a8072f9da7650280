"""What every part uses: devices, threads, processes, random streams, files and locks. No models here."""
