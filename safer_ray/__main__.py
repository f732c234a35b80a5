"""``python -m safer_ray`` is ``safer-ray``: what ``ray job submit`` runs."""

from safer_ray.cli import main

main()
