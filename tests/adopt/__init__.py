"""What adopts the built package as a team would: the steps of docs/adopting.md, in a project outside the checkout.

`page` reads a page as steps, `walk` takes them, `workshop` has what they need. Nothing here imports the product.
"""
