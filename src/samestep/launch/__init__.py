"""From a request to a finished run: processes are started here and nowhere else, and the environment is read here.

It knows every lower room and none of the faces: it neither parses command lines nor prints results.
"""
