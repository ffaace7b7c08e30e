"""encoder -> fusion -> projector -> splice -> bridge; every file is one step of the flow."""
