"""``python -m loadtests.capacity``."""

from loadtests.capacity.command import app

if __name__ == "__main__":
    app(prog_name="python -m loadtests.capacity")
