"""train and train_vae: a mel data set to a model, on Ray Train."""
