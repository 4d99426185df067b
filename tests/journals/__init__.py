"""Golden journals: runs that earlier versions have left, which every later version has to bring to their end."""
