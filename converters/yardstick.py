"""What the distance between two models is measured with when nobody gives a text, and what it is called.

TEXT is prose, dialogue, a letter, code, tables, sums and some languages, written for this: two contexts of 512 tokens
with common vocabularies. Grades depend on it, and so do the scales of an int8 KV cache (onnx/kv_scales.py).
"""

from __future__ import annotations

# the largest mean KL divergence, in nats, that has the name; what is beyond the last one is "poor"
GRADES = (("excellent", 0.005), ("very good", 0.02), ("good", 0.05), ("fair", 0.1))
N_CTX = 512  # tokens of a context, as `edgellm eval` takes them; fewer where a model has fewer
PREDICTIONS = 510  # at least, so that the standard error of a mean KL is about a twentieth of it


def grade_of(mean_kl: float) -> str:
    """ "excellent", "very good", "good", "fair" or "poor"."""
    return next((name for name, most in GRADES if mean_kl <= most), "poor")


TEXT = """\
The harbour lay quiet in the early morning. Two boats had come back during the night, and their crews were already
carrying crates of mackerel up the stone steps to the market hall. Anna counted them as they passed: twelve,
thirteen, fourteen. She wrote the number in her book, closed it, and looked out over the water. "It will rain
before noon," said the old man beside her. "It always does when the gulls sit on the wall." She laughed, because he
said this every day.

Water expands when it freezes, which is unusual. Most liquids shrink as they become solid, since their molecules
move closer together. In ice, however, every molecule is held by four neighbours in an open lattice that takes more
room than the liquid does. This is why ice floats, why pipes burst in winter, and why lakes freeze from the top
while fish live on in the cold water below. If it were otherwise, the oceans would have filled with ice from the
bottom long ago.

def average(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else None

1. Preheat the oven to 200 degrees. 2. Mix 500 g of flour with 10 g of salt and 7 g of yeast. 3. Add 350 ml of warm
water and knead the dough for ten minutes. 4. Let it rest for one hour under a cloth. 5. Bake it for 35 minutes,
until the crust is brown and the loaf sounds hollow when you knock on it.

The committee met on Tuesday, 14 March, to discuss the budget for the coming year. Its chair explained that income
had fallen by 3.5 percent, mainly because fewer visitors had come in the summer, and proposed to close the museum
on Mondays. Several members disagreed. One of them pointed out that schools prefer Mondays for their excursions,
and that the savings would be small. After a long debate the proposal was rejected by seven votes to four, with one
abstention.

The lighthouse on the northern point was built in 1874 and rebuilt after the storm of 1911. Its lamp could be seen
from nineteen miles away, and for sixty years somebody climbed the two hundred and twelve steps every evening to
light it. The last keeper, a woman called Ingrid Sand, wrote down the weather three times a day. Her books are still
there. "Wind from the west, force six," says the page of 3 January 1953. "Two ships passed. The cat has come back."
Nobody knows how long the cat had been away, because the page before it is missing.

Q: Why does the moon always show us the same face?
A: Because it turns around itself once in the time that it takes to go around the Earth. Tides did that: long ago the
moon turned faster, the Earth pulled at the side that was nearer, and the friction slowed it down until both motions
took the same 27.3 days. It rocks a little all the same, so that we can see about 59 percent of its surface over time.

Dear Mr. Okafor,

Thank you for your letter of 12 May. We are sorry that the bicycle arrived with a bent wheel and without its bell. A
new wheel left our warehouse this morning and should reach you by Friday; please keep the old one, as we do not need
it back. The bell is out of stock until June. If you would rather have your money, tell us, and we will send it within
five working days.

Yours sincerely,
Maria Lindqvist

# How to use the tool

Install it with `pip install gauge`, then run `gauge measure FILE`. The result is a table of three columns:

| column | meaning                      | unit    |
|--------|------------------------------|---------|
| time   | since the start              | seconds |
| value  | mean of the last ten samples | volts   |
| error  | standard error of that mean  | volts   |

class Queue:
    '''First in, first out, with room for a fixed number of items.'''

    def __init__(self, size):
        self.items = []
        self.size = size

    def push(self, item):
        if len(self.items) == self.size:
            raise OverflowError(f"the queue is full: {self.size} items")
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("the queue is empty")
        return self.items.pop(0)

{"name": "Anna", "age": 41, "languages": ["Danish", "English"], "address": {"city": "Aarhus", "zip": "8000"}}

Die Bahn nach Hamburg fährt heute zwanzig Minuten später. Le musée est fermé le mardi, mais le jardin reste ouvert
jusqu'à huit heures. El tren sale a las nueve y llega antes del mediodía.

A farmer has 17 sheep, and all but nine run away. How many are left? Nine: "all but nine" says how many stayed. If
he then buys half as many again as he has, rounded up, he owns 9 + 5 = 14 sheep. At 3 kg of hay a day for each of them
he needs 42 kg a day, or 294 kg a week.

In economics, a price floor is a limit below which a price may not fall. When it lies above the price that the market
would find, sellers offer more than buyers want, and a surplus is left. Governments have dealt with such surpluses in
several ways: they bought and stored the goods, they paid producers to make less, or they sold abroad at a loss.
"""
