"""The rules of offline payments: values in, values out."""
