"""``python -m lit_rl`` is ``lit-rl``."""

from lit_rl.cli.main import main

main()
