"""The verbs train and train_vae: training on a mel dataset with Ray Train."""
