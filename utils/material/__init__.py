"""What chapters talk about: days, tenses, induction, public text, readings."""
