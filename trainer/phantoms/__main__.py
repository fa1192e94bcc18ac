import sys

from trainer.phantoms import main

sys.exit(main(sys.argv[1:]))
