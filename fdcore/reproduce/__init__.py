"""The paper's experiments: what is asked (settings), of which parts each consists (protocols), and what the paper found (published)."""
