"""Events of cameras that send changes of brightness."""
