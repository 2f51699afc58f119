"""What all motion-transfer methods share: the motion, its file, and the interface of a method.

This room owns `Motion`, `MotionMethod` and `Sampling`. It refuses to know single papers and the
ways in which methods guide or train. Begin with `method`, then read `motion`.
"""
