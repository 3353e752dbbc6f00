"""`python -m patchscale` is the `patchscale` command."""

from patchscale.cli.app import main

main()
