"""The `quickstudy` command, which is `python -m quickstudy`, too."""

from quickstudy.process import settle_own_process


def main() -> None:
    """Run the command line; from the first moment on, Ctrl-C ends it without a traceback."""
    settle_own_process()
    from quickstudy.cli.main import run

    run()


if __name__ == "__main__":
    main()
