"use strict";
// Replaces the inside of a live region by what the server has rendered anew. Without this script a
// page shows what was when it was asked for.

// How long a connection may say nothing before the page says so. A dead one shows no error, nor does one
// that never comes about.
const SILENCE_MS = 15000;

for (const region of document.querySelectorAll("[data-live]")) {
  const state = document.getElementById(region.dataset.state);
  let source, heard, newest, ended = false;

  // A text that stays the same is not written again: screen readers would read it out again.
  const say = (text) => {
    if (state && state.textContent !== text) state.textContent = text;
  };
  // Who reads, types or selects in the region is not interrupted.
  const inUse = () =>
    region.contains(document.activeElement) ||
    (!getSelection().isCollapsed && region.contains(getSelection().anchorNode));
  // Who reads in what was written stays there, and who is at its end sees what comes.
  const scrolled = () =>
    Array.from(region.querySelectorAll("pre, .scroll"), (element) => {
      const { scrollLeft: left, scrollTop: top, scrollHeight, clientHeight } = element;
      return { element, left, top, atEnd: scrollHeight - clientHeight - top < 2 };
    });
  const scrollAsBefore = (element, before = { left: 0, atEnd: true }) => {
    element.scrollLeft = before.left;
    element.scrollTop = before.atEnd ? element.scrollHeight : before.top;
  };
  const show = () => {
    if (newest === undefined) return;
    if (inUse() && !ended) return say("paused: the focus or a selection is below");
    const before = scrolled();
    region.innerHTML = newest;
    scrolled().forEach(({ element }, place) => scrollAsBefore(element, before[place]));
    newest = undefined;
    if (ended) say("ended");
    // It may have waited here for longer than the connection lasted.
    else if (source && source.readyState === EventSource.OPEN) say("live");
  };
  const close = () => {
    if (source) source.close();
    source = undefined;
  };
  // A page that nobody sees needs no connection, and a browser has few for each host.
  const open = () => {
    if (source || ended || document.hidden) return;
    heard = Date.now();
    say("connecting");
    source = new EventSource(region.dataset.live);
    source.addEventListener("region", (event) => {
      heard = Date.now();
      newest = event.data;
      show();
    });
    source.addEventListener("end", () => {
      ended = true;
      close();
      show();
      say("ended");
    });
    source.addEventListener("error", () => {
      if (source && source.readyState !== EventSource.CLOSED) return say("reconnecting");
      close();
      say("not live: refresh");
    });
  };

  setInterval(() => {
    const silent = Date.now() - heard;
    if (source && silent > SILENCE_MS) {
      say(`nothing new for ${Math.round(silent / 1000)} s`);
    }
  }, 5000);
  addEventListener("focusout", () => setTimeout(show));
  document.addEventListener("selectionchange", show);
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  scrolled().forEach(({ element }) => scrollAsBefore(element));
  open();
}
