"""Tables, figures and the HTML page of a study. Imports no TensorFlow.

`table` turns evaluation records into rows and prints them, `verdict` says in words what the rows
show, `plots` draws them, `page` puts everything into one directory with an `index.html`.
"""
