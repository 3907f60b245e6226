"""Importing this file leaves what is there to stay: no search for garbage goes through it, in no forked child either."""

import gc

gc.freeze()
