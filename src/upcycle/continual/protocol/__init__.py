"""The protocol of continual learning: tasks in their order, what is kept between them, what is measured after each."""
