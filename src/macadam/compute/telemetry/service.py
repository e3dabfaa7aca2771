"""What GPUs and hosts were seen to do: devices, their state now, their series, and which of it is not to be believed."""
