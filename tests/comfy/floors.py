"""How near to the full run a cached run of the demo's models has to come. Wide, because it must hold whenever these models are trained
anew: the tests find methods that are broken, and `make bench-quality` measures how good they are."""

SAME_PICTURE = 0.5  # largest relative distance of latents; that of two prompts' pictures is about 1
DECIBELS_BELOW = 6.0  # a picture may fall so far below the decibels that Auto was asked for
OVER_PLAIN = 0.7  # error of the default method, as a share of that of plain sampling with as many evaluations
