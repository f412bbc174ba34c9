"""`python -m quickstudy` is the `quickstudy` command."""

from quickstudy.cli.main import run

run()
