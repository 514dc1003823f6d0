"""What the grader says in lesson 23: hints, mistakes, remarks, questions."""

exercises = {
    "23a": dict(
        hints=[
            "How far apart are two neighbours between 1 and 2, between 2 and 4, and near 0?",
            "The power of two below the number; its spacing, or the smallest; round; then look for inf.",
            "s = max(2^(floor(log2 |x|) - digits + 1), smallest); r = round(x / s) s; inf if |r| > largest",
        ],
        wrong={
            "cut off": "Digits are cut off: of the two neighbours you take the smaller. Which one is nearer?",
            "halves upwards":
                "A number half way between two goes to the even one: 2049 is stored as 2048. Where does "
                "yours go?",
            "never inf": "70,000 is stored in float16 as if there were room. What is the largest?",
            "largest, not inf":
                "What is too large becomes the largest number there is. What does the hardware make of it?",
            "inf before rounding":
                "65,510 is nearer to 65,504 than to what would come next. Is it rounded first, or compared?",
            "sign of inf": "-70,000 becomes plus infinity.",
            "no smallest number": "1e-8 survives in float16. Does the spacing shrink for ever?",
            "float16's smallest for both":
                "Small numbers vanish in bfloat16, too. Is its smallest number that of float16?",
            "tiny ones are 0":
                "Below the last full power of two all is 0. How far down do numbers go, with fewer digits?",
            "a digit too many":
                "Twice as many numbers as there are. The digits count the first one, too: 2^0 of 1.001 is a "
                "digit.",
            "a digit too few":
                "Half as many numbers as there are. Has 3 the power 2, or 4? How many digits follow the "
                "first?",
            "one spacing for all": "Large numbers keep all digits. Does the spacing not grow?",
            "nearest power": "Does 1.9 lie between 1 and 2?",
            "sign lost": "Where is the sign?",
        },
    ),
    "23b": dict(
        hints=[
            "In which order: divide by the scale, measure the length, look for inf, step?",
            "One length tells all: it is not finite if any gradient is not. There are three cases.",
            "clear; (loss scale).backward(); grads / scale; norm; if not finite scale / 2, 0; clip, step",
        ],
        wrong={
            "clipped before unscaling":
                "Your steps are tiny: the length that is clipped is that of scaled gradients. What comes "
                "first?",
            "never unscaled":
                "The optimizer gets gradients of the scaled loss. Adam would hide it. What is missing?",
            "unscaled twice":
                "What the optimizer gets is too small by the scale. How often are the gradients divided?",
            "inf not skipped":
                "A gradient is not finite, its step is made, and all weights are nan. When is a step left "
                "out?",
            "nothing ever checked": "Nobody looks at the gradients: one inf, and the weights are nan.",
            "inf taken for 0":
                "Where a gradient is inf, others are wrong, too, and you step with them. What of this "
                "update?",
            "scale stays after inf":
                "The step was left out, and the scale that caused it stays. Will the next one fit?",
            "scale never grows": "After an overflow it is low for ever. When may it grow again?",
            "grows each time":
                "The scale doubles with each good update, and every few of them are lost. How patient is "
                "`every`?",
            "grows an update late": "Growth comes an update too late. When is the count full?",
            "count not reset by inf":
                "Growth is due after so many good updates in a row. What does a lost one do to the count?",
            "count not reset by growth":
                "It grew once and never again, as the count goes on. Where does it begin anew?",
            "loss not scaled": "You divide by a scale that nothing was multiplied with.",
            "no scaling at all":
                "Where the loss is tiny, so is the gradient, and float16 makes 0 of it. What is the scale "
                "for?",
            "not clipped": "Long gradients arrive as they are. Where is the limit?",
            "always rescales": "Short gradients get longer. When should they?",
            "gradients pile up":
                "The second update holds the gradient of the first, too, and inf never goes away.",
            "no step": "Gradients are fine, and no weight moves.",
            "halved by good ones": "Good updates make it fall.",
        },
    ),
    "23c": dict(
        hints=[
            "Which of norm, product, loss and update take most of the time, and which need digits?",
            "bfloat16 copies of both factors live for one product only; all else is float32.",
            "each time: h = norm(x); logits = both as bfloat16, multiplied, widened; loss; weight - lr g",
        ],
        wrong={
            "loss in bfloat16":
                "Your losses come in steps of 1/32: 4.1744 reads 4.1875. What is widened before the loss?",
            "loss widened too late":
                "The mean is in float32, the logarithms of it are not. Before which step is it widened?",
            "weights in bfloat16":
                "Small updates are lost: bfloat16 has nothing between 1 and 1.0078. Which copy is updated?",
            "first updates lost":
                "The weights are rounded before the first update. Which copy is rounded, and for what?",
            "norm in bfloat16":
                "x is near 100, where bfloat16 has steps of 1/2, and then the mean is subtracted. What is "
                "left?",
            "all in float32": "Right, and slow: nothing is multiplied in bfloat16.",
            "float16 for bfloat16": "Which of the two has the range of float32?",
            "rounded, multiplied in float32":
                "Rounded to bfloat16, and widened again before the product. Where is time won?",
            "old weights read":
                "All losses are the same: the bfloat16 copy is that of the first weights. When is it made?",
            "nothing updated": "The weights are as they came. What is done with the gradient?",
            "up the slope": "The loss grows. Against the gradient, or along it?",
            "no norm": "The head reads the stream as it is. Where is the norm?",
            "in place": "The caller's weights were changed, too. Work on a copy.",
            "rate left out": "Steps do not depend on lr.",
            "one step": "One update is made. How many are asked for?",
        },
    ),
}  # fmt: skip

predictions = {
    "23.1": dict(
        ask="70,000, stored in bfloat16",
        wrong={
            70000.0:
                "bfloat16 has 8 digits; near 70,000 its numbers are 512 apart, and the nearest is 70,144.",
            65504.0: "65,504 is the largest in float16. bfloat16 goes on to 3e38, in steps: 70,144.",
        },
    ),
    "23.2": dict(
        ask="1 + 0.001, added in bfloat16",
        wrong={
            1.001: "The next number after 1 is 1.0078: 1.001 is nearer to 1.",
            1.0078: "1.0078 is the next number after 1, but 1.001 is nearer to 1.",
            0.001: "The sum is about 1; what gets lost is the small one.",
        },
    ),
}  # fmt: skip
