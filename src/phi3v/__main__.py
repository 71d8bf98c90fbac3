"""Run the command line as ``python -m phi3v``."""

from phi3v.cli import start

if __name__ == "__main__":
    start()
