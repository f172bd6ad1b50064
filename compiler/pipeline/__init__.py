"""What a pass is (`passes`), how a pipeline runs (`manager`), what was asked for (`options`)."""
