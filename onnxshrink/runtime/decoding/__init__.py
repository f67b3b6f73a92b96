"""The feeds of a decoder are one system: new tokens, a past, a mask over both, places, caches.

``system`` finds it, ``rolling`` makes feeds of tokens alone, ``steps`` lets a model go on from what
it answered itself.
"""
