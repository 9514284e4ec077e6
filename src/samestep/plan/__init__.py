"""Plans, clusters, machines and predictions: frozen values, stable as text.

The room says who computes and keeps what. It knows no torch, no model, and not how a plan was found or is run.
"""
