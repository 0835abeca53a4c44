"""The two models, their configurations and processors, and the code that a saved model needs: masks, FSQ, reading videos.

The folder is flat and imports only its own files, because transformers copies a model's sibling files to the Hub. Training, datasets
and files on disk live elsewhere, and the two models never import each other.
"""
