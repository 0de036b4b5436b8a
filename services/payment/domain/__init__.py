"""The rules of money: values in, values out."""
