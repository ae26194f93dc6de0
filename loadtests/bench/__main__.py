"""``python -m loadtests.bench``."""

from loadtests.bench import app

if __name__ == "__main__":
    app()
