"""The parts of `gpu.py`: each measures one thing of the engine on the card that is there."""
