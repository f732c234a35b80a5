"""One file per outside thing; heavy imports live only here, behind the protocols of ``base``."""
