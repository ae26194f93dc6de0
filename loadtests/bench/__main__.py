"""``python -m loadtests.bench``."""

from loadtests.bench.command import app

if __name__ == "__main__":
    app()
