"""What every room uses: errors, files, runs, flags."""
