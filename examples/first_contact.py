import grange as gr


def collatz_steps(start):
    return 0 if start == 1 else 1 + collatz_steps(start // 2 if start % 2 == 0 else 3 * start + 1)


campaign = gr.Campaign("first-contact", gr.open())
campaign.map(collatz_steps, start=range(1, 1001))
campaign.run()
print(campaign.results())
