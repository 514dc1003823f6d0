"""What the grader says in lesson 38: hints, mistakes, remarks, questions."""

exercises = {
    "38a": dict(
        hints=[
            "Which rows of weight make which outputs? And which outputs does the gradient of x come from?",
            "Cut each part by itself. A hook on a view of x gets the gradient and returns another.",
            "weight -> (parts, ranks, rows, D), yours of it; a view of x, its hook sums a clone; x @ W.T",
        ],
        wrong={
            "cut across the parts":
                "One stretch of all rows: rank 0 gets queries alone. How is each part cut?",
            "inputs cut, not outputs": "You cut the inputs: half-made sums. Which axis makes outputs?",
            "wrong axis": "You cut the other axis of weight. If it were square, nothing would fail: is it?",
            "whole layer on all": "Each rank computes the whole layer. What is its share?",
            "rank 0's share on all": "All ranks have the same share: nobody makes the other outputs.",
            "rows dealt in turn":
                "Rows are dealt out in turn: that tears heads of attention apart. Take a stretch.",
            "bias cut otherwise": "Your bias belongs to other outputs than your rows. How is it cut?",
            "whole bias": "The bias belongs to the outputs, as the rows do. Which of its numbers are yours?",
            "no bias": "Where is the bias?",
            "gradient not summed":
                "Output right. The gradient of x is that of your outputs alone. Who adds the others'?",
            "all gradients of x summed":
                "x has other users, and their gradient is now summed, too. Where does a view help?",
            "gradient averaged": "The gradient of x is a sum over outputs, wherever they are made.",
            "sum not handed on": "The sum is made, and the hook returns the old gradient.",
            "output summed": "The ranks' outputs are different numbers of the layer. What is there to sum?",
            "output gathered":
                "Right numbers, but gathered. The next layer can take them as they are: why send them?",
        },
    ),
    "38b": dict(
        hints=[
            "Each rank has some terms of the same sums. What must happen once, and where, with the bias?",
            "Sum a copy without a graph. Then give your part that number, and keep its gradient.",
            "part = x @ my columns; total = sum of copies; part + (total - part).detach(); bias; activation",
        ],
        wrong={
            "bias on every rank": "The bias stands in each part and is summed. How often should it be there?",
            "bias divided by the ranks":
                "Output right. But the gradient of the bias is too small by the number of ranks.",
            "bias on rank 0 alone":
                "Output right. Only rank 0's bias has a gradient: after a step the copies differ.",
            "no bias": "Where is the bias?",
            "all_reduce returned": "all_reduce works in place. What does it return?",
            "not summed": "Each rank returns its own terms. Who adds them up?",
            "averaged": "The terms of a product are summed, not averaged.",
            "activation before the sum":
                "The activation of a sum is not the sum of activations. When is the sum complete?",
            "sum without a gradient":
                "Number right, but it has no graph: nothing before or in this layer learns.",
            "gradient times the ranks":
                "Output right. Your gradient is summed, too, and each rank has all of it.",
            "outputs cut, not inputs": "You cut the outputs. Which axis of weight meets your x?",
            "columns dealt in turn": "Your x is one stretch of the inputs. Which columns belong to it?",
            "rank 0's columns on all": "All ranks use the same columns, with other inputs.",
            "gathered first": "Right, but all of x is sent and the whole product is made by every rank.",
        },
    ),
}  # fmt: skip

predictions = {
    "38.1": dict(
        ask="all-reduces in the forward pass of one block (attention and MLP, each column then row)",
        wrong={
            4.0: "One for each matrix would be 4. A column's output stays where it is: one for each pair, 2.",
            1.0: "Attention ends in a sum, and so does the MLP: 2.",
            0.0: "Each rank has some terms of a sum only: it has to be made, once in each part, 2.",
        },
    ),
    "38.2": dict(
        ask="4 ranks each add the bias before the sum: the output is off by how many times the bias",
        wrong={
            4.0: "It stands there 4 times, and once is right: 3 too many.",
            1.0: "4 times instead of once: 3 too many.",
            0.25: "A sum over ranks, not a mean: 4 times instead of once, 3 too many.",
        },
    ),
}
