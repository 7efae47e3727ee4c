"""shapes-wan: the embedded text-to-video model, its data generator, training and evaluation."""
