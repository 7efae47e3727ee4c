"""What is done about the keys that were not computed: forms of `accel.attention.plan.Correction`."""
