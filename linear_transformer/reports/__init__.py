"""Published tables beside this project's measurements, Long Range Arena, and curves of runs."""
