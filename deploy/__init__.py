"""What a deployment is made of, beside the packages themselves."""
