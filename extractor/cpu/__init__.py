"""The network's arithmetic on CPUs: fewer multiplications and fewer passes over memory than torch's own."""
