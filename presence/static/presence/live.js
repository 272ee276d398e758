/* Refreshes the live view: the address of the page is asked for again, and the part that changes is replaced.
 * Nothing is asked while the page is hidden, or while the operator has paused it; and the less often, the longer answers take
 * or the longer there were none. */

(() => {
    "use strict";

    const region = document.getElementById("refreshed");
    const pause = document.getElementById("refresh-pause");
    const stale = document.getElementById("refresh-failed");
    if (!region || !pause || !stale) {
        return;
    }
    const PERIOD = 1000 * Number(region.dataset.refresh);
    const PATIENCE = 15000;
    const MOST = 60000;
    const SHARE = 4; // a page waits four times as long as it was answered: it keeps the web side busy for a fifth of the time
    let isPaused = false;
    let isAsking = false;
    let timer = 0;
    let period = PERIOD;

    function plan() {
        clearTimeout(timer);
        if (!isPaused && !document.hidden) {
            timer = setTimeout(refresh, period);
        }
    }

    async function refresh() {
        if (isAsking || isPaused || document.hidden) {
            return;
        }
        isAsking = true;
        let hasEnded = false;
        const began = performance.now();
        try {
            const answer = await fetch(location.href, {
                headers: {"X-Presence-Refresh": "1"},
                cache: "no-store",
                signal: AbortSignal.timeout(PATIENCE),
            });
            if (answer.redirected) {
                location.reload(); // the session has ended: the login page is next
                return;
            }
            const page = new DOMParser().parseFromString(await answer.text(), "text/html");
            const fresh = page.getElementById("refreshed");
            hasEnded = answer.status === 404 && fresh !== null; // a proxy has another 404
            period = fresh ? Math.max(PERIOD, SHARE * (performance.now() - began)) : longer();
            show(fresh);
        } catch {
            period = longer();
            show(null);
        } finally {
            isAsking = false;
        }
        if (!hasEnded) {
            plan();
        }
    }

    /* Tabs that lost the web side together do not come back together. */
    function longer() {
        return Math.min(MOST, 2 * period) * (0.75 + Math.random() / 4);
    }

    function show(fresh) {
        stale.hidden = fresh !== null;
        region.classList.toggle("presence-old", fresh === null);
        if (fresh && !isPaused && !isSelected()) {
            keepingPlace(() => region.replaceChildren(...fresh.childNodes));
        }
    }

    /* The operator is copying something. */
    function isSelected() {
        const selection = getSelection();
        return !selection.isCollapsed && selection.intersectsNode(region);
    }

    /* The focus stays on the link that has it, and what was scrolled sideways stays there. */
    function keepingPlace(replace) {
        const focused = region.contains(document.activeElement) ? document.activeElement : null;
        const scrolled = [...region.querySelectorAll(".presence-results")].map((each) => each.scrollLeft);
        replace();
        region.querySelectorAll(".presence-results").forEach((each, number) => {
            each.scrollLeft = scrolled[number] || 0;
        });
        const same = focused && [...region.querySelectorAll("a")].find((each) => each.href === focused.href);
        if (same) {
            same.focus({preventScroll: true});
        }
    }

    document.addEventListener("visibilitychange", () => {
        clearTimeout(timer);
        refresh();
    });
    pause.addEventListener("click", () => {
        isPaused = !isPaused;
        pause.setAttribute("aria-pressed", String(isPaused));
        clearTimeout(timer);
        refresh();
    });
    pause.hidden = false;
    plan();
})();
