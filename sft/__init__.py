"""What `train_sft.py` is made of, one noun a file."""
