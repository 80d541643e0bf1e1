"""The style sheet of the page of latents, for light and dark screens."""

STYLE = """
:root {
  color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --paper: #fff; --card: #f6f6f4; --line: #ddd;
  --hot: 255, 150, 40;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #9a9a9a; --paper: #161616; --card: #1f1f1f; --line: #383838; --hot: 186, 92, 0; }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0 0 1rem; font-size: .9rem; }
dt, .facts, small, caption { color: var(--soft); }
dd { margin: 0; }
.facts { margin: 0 0 .5rem; font-size: .85rem; }
nav { display: flex; flex-wrap: wrap; gap: .35rem; margin-bottom: 1rem; }
nav a {
  color: inherit; text-decoration: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 4px; padding: 0 .4rem;
}
nav small { margin-left: .4rem; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  margin-bottom: 1rem;
}
.latent { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.contexts { flex: 3 1 30rem; min-width: 0; }
.contexts p { display: flex; gap: .7rem; margin: 0; padding: .25rem 0; border-top: 1px solid var(--line); }
.contexts b {
  flex: none; width: 3.2rem; text-align: right; font-weight: 400; font-size: .8rem; line-height: 1.9;
  color: var(--soft);
}
.text { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; font-family: Georgia, serif; }
.text span, .text mark { color: inherit; background: rgba(var(--hot), var(--a, 0)); }
/* Shadows and outlines, unlike borders and bold type, leave letters joined that are in different tokens. */
.text span { box-shadow: inset 1px 0 var(--line); }
.text mark { outline: 1.5px solid currentColor; }
.text .joined {
  --lines: repeating-linear-gradient(90deg, var(--line) 0 1px, transparent 1px calc(100% / var(--n)));
  background: var(--lines), var(--codes); box-shadow: 0 2px var(--soft);
}
.text mark.joined {
  --bar: linear-gradient(currentColor, currentColor);
  background: var(--bar) calc(100% * var(--peak) / (var(--n) - 1)) 100% / calc(100% / var(--n)) 3px no-repeat, var(--lines), var(--codes);
}
.effects { flex: 1 1 15rem; display: flex; gap: 1rem; align-items: flex-start; font-size: .85rem; }
table { border-collapse: collapse; flex: 1; }
caption { text-align: left; }
td { border-top: 1px solid var(--line); padding: .05rem .3rem .05rem 0; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
code { white-space: pre; background: var(--paper); border-radius: 2px; padding: 0 .15rem; }
"""
