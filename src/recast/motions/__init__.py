"""What all motion-transfer methods share: the motion, its file, and the interface of a method.

This room owns `Motion`, `MotionMethod` and `Sampling`. It refuses to know single papers, and how a
method guides or trains. Begin with `method`, then read `motion`.
"""
