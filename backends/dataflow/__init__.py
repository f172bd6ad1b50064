"""The dataflow accelerator: cores whose memories and moves are scheduled at compile time."""
