"""Runtime: assembly. Task presets, compilation, and the commands."""
