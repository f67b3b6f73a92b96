"""``python -m onnxshrink`` is the command line."""

from onnxshrink.cli import main

if __name__ == "__main__":
    main()
