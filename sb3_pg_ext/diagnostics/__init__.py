"""Are the gradients right? Estimators against exact answers; ``sb3-pg gradlab`` is the command."""
